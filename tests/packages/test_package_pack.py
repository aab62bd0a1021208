"""Packing: the layout, reproducibility, what is left out, lineage through generations, the export worksheet."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from attacks import _model
from attacks.workshop import finished_run, flip, third_generation, workshop
from stillroom.core import files
from stillroom.core.errors import InspectionRefused, RecipeError, RunError, TermsRefused, UsageError, VerificationFailed
from stillroom.packages.pack import PackOptions, pack, package_name
from stillroom.packages.provenance import operations, public_recipe
from stillroom.packages.show import passport_of
from stillroom.packages.worksheet import screen, worksheet
from stillroom.runs.run import Run
from stillroom.verification.claims import licence_files, read_claims
from stillroom.verification.manifest import make_manifest, walk

DAY = datetime.date(2026, 11, 24)


def test_layout(tmp_path: Path) -> None:
    folder = pack(finished_run(tmp_path), options=PackOptions(safetensors=True))
    assert walk(folder) == [
        "LICENSES/Apache-2.0.txt",
        "NOTICE",
        "README.md",
        "bom.cdx.json",
        "config.json",
        "eval.json",
        "export.json",
        "policy.json",
        "provenance.json",
        "template.jinja",
        "terms.json",
        "tokenizer.json",
        "weights/model.safetensors",
        "weights/small-Q8_0.gguf",
    ]
    claims = read_claims(folder)
    assert claims.verdict == "allowed"
    assert claims.scores["kl_to_teacher"] == 0.42
    assert "SmolLM2-135M-Instruct" in (folder / "README.md").read_text()


def test_same_run_packs_to_the_same_bytes(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    one = pack(run, tmp_path / "one", PackOptions(released=DAY))
    other = pack(run, tmp_path / "other", PackOptions(released=DAY))
    assert make_manifest(one, "small", 1) == make_manifest(other, "small", 1)


def test_another_day_differs_only_where_it_says(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    one = pack(run, tmp_path / "one", PackOptions(released=DAY))
    other = pack(run, tmp_path / "other", PackOptions(released=DAY + datetime.timedelta(days=1)))
    dated = json.loads((one / "policy.json").read_text())["dated"]
    differing = {name for name in walk(one) if (one / name).read_bytes() != (other / name).read_bytes()}
    assert differing == {place.partition("#")[0] for place in dated}
    for name in differing:
        documents = [json.loads((folder / name).read_text()) for folder in (one, other)]
        for place in dated:
            file, _, pointer = place.partition("#")
            if file == name:
                for document in documents:
                    _remove(document, pointer.strip("/").split("/"))
        assert documents[0] == documents[1]


def _remove(value: Any, keys: list[str]) -> None:
    for key in keys[:-1]:
        value = value[key]
    del value[keys[-1]]


def test_package_replaces_a_package_and_nothing_else(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    folder = pack(run)
    (folder / "stray").write_text("x")
    assert "stray" not in walk(pack(run))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    with pytest.raises(RunError, match="not a package"):
        pack(run, tmp_path / "photos")


def test_unaccepted_weights_are_not_packed(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    with open(run.path / "export" / "small-Q8_0.gguf", "ab") as stream:
        stream.write(b"x")
    with pytest.raises(RunError, match="not the file that was accepted"):
        pack(run)


def _with_onnx(run: Run, weights: bytes = bytes(16)) -> Run:
    """A run that exported ONNX too."""
    folder = run.path / "export" / "onnx"
    for name, content in {"model.onnx": _model.onnx(), "model.onnx.data": weights, "config.json": b"{}"}.items():
        files.write_bytes(folder / name, content)
    record = run.path / "export" / "export.json"
    digests = {file.name: files.digest_file(file) for file in sorted(folder.iterdir())}
    files.write_json(record, files.read_json(record) | {"onnx": {"path": "export/onnx", "files": digests}})
    return run


def test_onnx_is_packed_named_and_verified(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    run = _with_onnx(finished_run(tmp_path / "runs"))
    folder = pack(run, tmp_path / "with", PackOptions(sequence=3))
    packed = ["weights/onnx/config.json", "weights/onnx/model.onnx", "weights/onnx/model.onnx.data"]
    assert [name for name in walk(folder) if "onnx" in name] == packed
    bom = files.read_json(folder / "bom.cdx.json")
    named = {part["name"]: part["hashes"][0]["content"] for part in bom["components"] if part["type"] == "file"}
    subjects = files.read_json(folder / "provenance.json")["subject"]
    for name in packed:
        assert named[name] == files.digest_file(folder / name)
        assert {"name": name, "digest": {"sha256": named[name]}} in subjects
        assert name in (folder / "README.md").read_text()
    references = [part["bom-ref"] for part in bom["components"]]
    assert len(references) == len(set(references))
    shop.sign(folder)
    assert set(packed) <= {file["name"] for file in passport_of(folder)["files"]}
    with shop.verify(folder) as verified:
        assert (verified.folder / packed[1]).read_bytes() == _model.onnx()
    flip(folder / packed[2])
    with pytest.raises(VerificationFailed, match=r"model\.onnx\.data"):
        shop.check(folder)


def test_a_signed_graph_whose_weights_are_cut_is_refused(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    folder = pack(_with_onnx(finished_run(tmp_path / "runs"), bytes(8)), tmp_path / "cut", PackOptions(sequence=3))
    shop.sign(folder)
    with pytest.raises(InspectionRefused, match="goes past the end"):
        shop.check(folder)


def test_a_graph_that_was_not_accepted_is_not_packed(tmp_path: Path) -> None:
    run = _with_onnx(finished_run(tmp_path))
    flip(run.path / "export" / "onnx" / "model.onnx.data")
    with pytest.raises(RunError, match="not the file that was accepted"):
        pack(run)
    record = run.path / "export" / "export.json"
    files.write_json(record, files.read_json(record) | {"onnx": {"path": "export/onnx"}})
    with pytest.raises(RunError, match="recorded no digests"):
        pack(run)


def test_recipe_in_the_provenance_names_no_folder_and_no_secret(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path, corpus={"sources": [{"kind": "text", "path": str(tmp_path / "private"), "licence": "MIT"}]}
    )
    shown = json.dumps(public_recipe(run))
    assert str(tmp_path) not in shown
    assert "private" in shown
    folder = pack(run)
    for name in walk(folder):
        assert str(tmp_path).encode() not in (folder / name).read_bytes()


def test_lineage_reaches_through_generations(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    ancestors = read_claims(third_generation(shop)).ancestors
    teachers = {ancestor.generation: ancestor for ancestor in ancestors if ancestor.kind == "teacher"}
    assert sorted(teachers) == [1, 2, 3]
    assert teachers[3].digest == files.digest_bytes(b"teacher")
    root = make_manifest(shop.package, "small", 2).root
    assert root in teachers[2].aliases
    datasets = [ancestor for ancestor in ancestors if ancestor.kind == "dataset"]
    assert [ancestor.generation for ancestor in datasets] == [1]


def test_run_as_a_teacher_passes_its_ancestors_on(tmp_path: Path) -> None:
    first = finished_run(tmp_path, "first")
    pack(first)
    files.write_json(first.path / "terms.json", json.loads((first.path / "package" / "terms.json").read_text()))
    weights = first.path / "export" / "first-Q8_0.gguf"
    second = finished_run(
        tmp_path,
        "second",
        {"name": "first", "digest": files.digest_file(weights)},
        teacher={"kind": "gguf", "path": str(weights)},
    )
    ancestors = read_claims(pack(second)).ancestors
    assert {ancestor.digest for ancestor in ancestors if ancestor.generation == 2} == {files.digest_bytes(b"teacher")}


def test_operations_and_worksheet(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.event("distill", step=1, tokens=1000)
    run.event("distill", step=2, tokens=2000)
    spent = operations(run, files.read_json(run.path / "summary.json"))
    assert spent["student_training"] == 6 * 1_000_000 * 2000
    assert spent["teacher_inference"] == 2 * 2_000_000 * (4096 + 128)
    sheet = worksheet(spent, 3e12, True, ["France"])
    assert sheet["eu"]["modifier_threshold"] == 1e12
    assert not sheet["eu"]["counts_as_provider_by_modification"]
    assert not sheet["us"]["closed_weights_above_threshold"]
    assert worksheet({"total": 2e26}, None, False, [])["us"]["closed_weights_above_threshold"]


def test_destinations_are_screened(tmp_path: Path) -> None:
    denied = tmp_path / "denied.txt"
    denied.write_text("# from the operator\nAtlantis  # sunk\n")
    screen(["France"], [denied])
    with pytest.raises(TermsRefused, match="line 2"):
        screen(["France", " ATLANTIS "], [denied])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("Atlantis", b"\xef\xbb\xbfAtlantis\n"),
        ("Atlantis", "Lemuria\r\nAtlantis\r\n".encode("utf-16")),
        ("Atlantis", b"Atlantis;AT;sunk\n"),
        ("Atlantis", b'AT\t"Atlantis"\n'),
        ("Korea, North", b'"Korea, North",KP\n'),
        ("Bank #1 of Atlantis", b"Bank #1 of Atlantis\n"),
        ("Côte d'Ivoire", "Co\u0302te d'Ivoire".encode()),
        ("Co\u0302te d'Ivoire", "CÔTE D\u2019IVOIRE".encode()),
        ("Cote d\u2019Ivoire", "Côte d'Ivoire".encode()),
        ("\uff21tlantis", b"Atlan\xc2\xadtis"),
    ],
)
def test_a_denied_destination_is_found_however_it_is_written(name: str, data: bytes, tmp_path: Path) -> None:
    denied = tmp_path / "denied.txt"
    denied.write_bytes(data)
    screen(["France", "Atlantis Street"], [denied])
    with pytest.raises(TermsRefused, match=r"denied\.txt, line"):
        screen(["France", name], [denied])


@pytest.mark.parametrize(
    ("destinations", "data", "message"),
    [
        ([], b"Atlantis\n", "no destination"),
        ([""], b"Atlantis\n", "no name of a destination"),
        ([" - "], None, "no name of a destination"),
        (["France"], b"", "names none"),
        (["France"], b"# nothing\n;;\n", "names none"),
        (["France"], b"\xffAtlantis", "not UTF-8"),
        (["France"], "Atlantis".encode("utf-16-le"), "not UTF-8"),
        (["France"], b"a" * 200_000, "line 1: cannot be read"),
    ],
)
def test_what_would_screen_nothing_is_refused(
    destinations: list[str], data: bytes | None, message: str, tmp_path: Path
) -> None:
    denied = tmp_path / "denied.txt"
    denied.write_bytes(data or b"")
    with pytest.raises(RecipeError, match=message):
        screen(destinations, [denied] if data is not None else [])
    with pytest.raises(RecipeError, match="cannot be read"):
        screen(["France"], [tmp_path / "absent"])


def test_a_list_in_the_folder_of_the_package_is_not_replaced_with_it(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    denied = pack(run) / "denied.txt"
    denied.write_text("Atlantis\n")
    with pytest.raises(UsageError, match="would be replaced"):
        pack(run, options=PackOptions(destinations=("France",), denied=(denied,)))
    assert denied.is_file()


def test_names_take_the_prefix_that_terms_oblige() -> None:
    assert package_name("small", None) == "small"
    assert package_name("small", "Llama") == "Llama-small"
    assert package_name("Llama-small", "Llama") == "Llama-small"
    assert package_name("llama-small", "Llama") == "Llama-llama-small"


def test_every_obliged_text_is_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that come to one file's name, to none, or to one that no package may hold; and the package verifies."""
    from stillroom.terms import gate

    obliged = {name: f"Text of {name}" for name in ("A/B", "A B", "a-b", "Only/One", "许可", "пермь", "CON", ".hidden")}
    real = gate.run_verdict

    def obliging(run: Run) -> Any:
        verdict = real(run)
        verdict.obligations.licences |= obliged
        verdict.obligations.policies |= {"A/B": "A policy of a licence's name"}
        return verdict

    monkeypatch.setattr(gate, "run_verdict", obliging)
    shop = workshop(tmp_path)
    folder = pack(finished_run(tmp_path / "runs"), tmp_path / "packed", PackOptions(sequence=3))
    copies = {path.name: path.read_text() for path in (folder / "LICENSES").iterdir()}
    assert {*obliged.values(), "A policy of a licence's name"} <= set(copies.values())
    assert copies["Only-One.txt"] == "Text of Only/One"
    assert "Apache-2.0.txt" in copies
    shop.sign(folder)
    shop.check(folder)


def test_file_names_of_licences() -> None:
    assert licence_files([("MIT", "x"), ("MIT", "x"), ("a b", "y")]) == {"MIT.txt": "x", "a-b.txt": "y"}
    assert list(licence_files([("MIT", "x"), ("mit", "y")])) == ["MIT-2d711642b726.txt", "mit-a1fce4363854.txt"]
    assert list(licence_files([("许可", "x"), ("CON", "y")])) == [
        "licence-2d711642b726.txt",
        "licence-a1fce4363854.txt",
    ]
