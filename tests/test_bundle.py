"""The bundle is the same wherever it is built, and says nothing but where the installed packages are."""

from fedgan.bundle import FILES, build_bundle, bundle_digest, digest_of_bundle


def test_the_bundle_is_the_same_wherever_it_is_built(tmp_path):
    folder = build_bundle(tmp_path / "anywhere")

    assert digest_of_bundle(folder) == bundle_digest()
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_a_changed_bundle_is_another(tmp_path):
    folder = build_bundle(tmp_path / "changed")
    with (folder / "client_app.py").open("a") as file:
        file.write("# a comment\n")

    assert digest_of_bundle(folder) != bundle_digest()
