"""Shares run together, each with its part of the threads, and none waits for one that failed."""

from __future__ import annotations

import threading

import pytest
import torch

from stillroom.models.threads import Abandoned, Milestones, run_together, split


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("whole", "shares"), [(2, 2), (4, 2), (3, 3), (5, 2)])
def test_each_share_computes_with_its_part_of_the_threads(whole, shares):
    torch.set_num_threads(whole)
    together = threading.Barrier(shares)

    def work(share):
        together.wait(10)  # all of them run at the same time
        torch.randn(300, 300) @ torch.randn(300, 300)
        return share, torch.get_num_threads()

    for _ in range(2):
        assert run_together(shares, work) == [(share, whole // shares) for share in range(shares)]
        assert torch.get_num_threads() == whole


def test_a_single_share_runs_where_it_was_asked_for():
    assert run_together(1, lambda share: (share, threading.current_thread())) == [(0, threading.current_thread())]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_autograd_does_as_on_the_calling_thread(mode):
    with mode():
        expected = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        found = run_together(2, lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
    assert found == [expected, expected]


def test_a_failure_is_the_one_that_is_raised_and_nobody_waits_for_it():
    milestones = Milestones()

    def work(share):
        if share == 1:
            milestones.fail()
            raise ValueError("mine")
        milestones.wait("never")

    with pytest.raises(ValueError, match="mine"):
        run_together(2, work)
    with pytest.raises(Abandoned):
        milestones.wait("never")
    assert run_together(2, lambda share: share) == [0, 1]


def test_shares_are_not_too_small():
    torch.set_num_threads(4)
    assert [split(count, 100) for count in (1, 199, 200, 399, 4000)] == [1, 1, 2, 3, 4]
