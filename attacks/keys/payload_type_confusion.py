"""A document that the release keys signed for another purpose is offered as a list of files."""

from __future__ import annotations

from attacks.workshop import changed_package, resign

ATTACK = changed_package(
    lambda shop: resign(shop, kind="application/vnd.acme.note+json"), threat="signatures", says="is not a DSSE envelope"
)

if __name__ == "__main__":
    ATTACK.main()
