"""What is written verifies with tools that are not ours."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from tuf.api.exceptions import RepositoryError
from tuf.ngclient import Updater

from attacks.workshop import Workshop, workshop
from stillroom.core import files
from stillroom.verification.client import _fetcher
from stillroom.verification.manifest import OUTSIDE


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return workshop(tmp_path)


def test_bill_of_materials_validates_against_the_schema(shop: Workshop) -> None:
    text = (shop.package / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None
    bom = json.loads(text)
    model = bom["metadata"]["component"]
    assert bom["specVersion"] == "1.7"
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert model["pedigree"]["ancestors"][0]["name"] == "SmolLM2-135M-Instruct"
    assert {"data", "file", "library"} <= {component["type"] for component in bom["components"]}
    broken = bom | {"components": [{"type": "wheel"}]}
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(json.dumps(broken)) is not None


@pytest.mark.parametrize("name", ["package.dsse", "provenance.dsse"])
def test_signatures_verify_with_securesystemslib(shop: Workshop, name: str) -> None:
    keys = [shop.ring.public_key(key) for key in shop.ring.names("release")]
    envelope = Envelope.from_dict(json.loads((shop.package / name).read_text()))
    assert len(envelope.verify(keys, 2)) == 2
    assert envelope.payload_type == "application/vnd.in-toto+json"
    statement = json.loads(envelope.payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    for subject in statement["subject"]:
        assert files.digest_file(shop.package / subject["name"]) == subject["digest"]["sha256"]
    envelope.payload += b" "
    with pytest.raises(VerificationError):
        envelope.verify(keys, 2)


def test_bundle_verifies_with_model_signing(shop: Workshop, tmp_path: Path) -> None:
    from model_signing import hashing, verifying

    public = tmp_path / "openssf.pem"
    public.write_text(shop.ring.content.openssf)
    ignored = [shop.package / name for name in OUTSIDE]

    def verify() -> None:
        config = hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public).set_hashing_config(config)
        verifier.verify(shop.package, shop.package / "package.oms.sig")

    verify()
    (shop.package / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"differ|mismatch|Hash"):
        verify()


@pytest.mark.parametrize("name", ["package", "../{folder}/package"])
def test_signing_again_by_a_relative_path_makes_a_bundle_that_verifies(
    name: str, shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing import hashing, verifying

    shop.edit("eval.json", lambda scores: scores.update(interval="90%"))
    bundle = shop.package / "package.oms.sig"
    before = bundle.read_bytes()
    monkeypatch.chdir(tmp_path)
    shop.sign(Path(name.format(folder=tmp_path.name)))
    assert bundle.read_bytes() != before
    shop.check()
    public = tmp_path / "openssf.pem"
    public.write_text(shop.ring.content.openssf)
    config = hashing.Config().set_ignored_paths(paths=[shop.package / name for name in OUTSIDE], ignore_git_paths=False)
    verifying.Config().use_elliptic_key_verifier(public_key=public).set_hashing_config(config).verify(
        shop.package, bundle
    )


def test_repository_verifies_with_the_client_of_tuf(shop: Workshop, tmp_path: Path) -> None:
    def update(folder: Path) -> dict[str, object]:
        (folder / "targets").mkdir(parents=True, exist_ok=True)
        base = shop.repo.as_uri()
        updater = Updater(
            str(folder),
            f"{base}/metadata/",
            str(folder / "targets"),
            f"{base}/targets/",
            fetcher=_fetcher(base),
            bootstrap=shop.pin.root_bytes(),
        )
        updater.refresh()
        found = {}
        for path in ("releases.json", "revocations/list.json", "releases/small/2/package.dsse"):
            info = updater.get_targetinfo(path)
            assert info is not None
            found[path] = Path(updater.download_target(info)).read_bytes()
        return found

    shop.repository().revoke("teacher", "0" * 64, "withdrawn")
    found = update(tmp_path / "client")
    assert found["releases/small/2/package.dsse"] == (shop.package / "package.dsse").read_bytes()
    assert json.loads(found["revocations/list.json"])["revocations"][0]["value"] == "0" * 64
    shop.repository(datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)).refresh()
    with pytest.raises(RepositoryError):
        update(tmp_path / "client")


def test_own_bill_of_materials_validates() -> None:
    from tools import sbom

    bom = sbom.bill()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(json.dumps(bom)) is None
    names = {component["name"] for component in bom["components"]}
    assert {"torch", "cryptography", "tuf"} <= names
    assert "pytest" not in names
    assert bom == sbom.bill()
