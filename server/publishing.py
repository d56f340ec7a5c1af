"""A model released to the federation's sites; ``releases`` has those that were, and hands them over."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgan.records import GlobalModel
from fedgan.results.release import Lineage, Place, Release
from fedgan.results.releasing import lineage_of, sign_release
from fedgan.run_folder import RunFolder
from server.releases import Releases


def publish_kept(
    releases: Releases, folder: RunFolder, number: int, key: Ed25519PrivateKey, *, rounds: int, chosen: bool
) -> Release:
    """Release round ``number`` of the run in ``folder``, which is of so many ``rounds``, as the next of the federation.

    Raises:
        ModelError: the round is not kept.
        RunFolderError, ReleaseRefused: as of ``publish``.
    """
    lineage = lineage_of(folder, number, rounds=rounds, chosen=chosen)
    return publish(releases, folder.kept(number), lineage, key)


def publish(releases: Releases, model: GlobalModel, lineage: Lineage, key: Ed25519PrivateKey) -> Release:
    """Release ``model`` as the next of the federation, signed with ``key``.

    Raises:
        RunFolderError: the release cannot be written; those before it stay.
        ReleaseRefused: the release before it is damaged, or ``key`` is not the federation's.
    """

    def sign(folder: Path, place: Place) -> Release:
        return sign_release(folder, model, lineage, place, key)

    return releases.add(sign, key.public_key())
