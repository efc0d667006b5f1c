"""Rules that hold for every file of the repository."""

import re
from pathlib import Path

CEILING = 400
KERNEL_CEILING = 500
BINARY = {".safetensors", ".png", ".npz"}

INDEX = r"https?://[^\s\"')]*(?:pypi|pythonhosted|/simple\b|/whl\b|conda|artifactory|nexus|mirror|registry)"
INDEX_OPTION = r"index-url[ =]\S*://|-find-links[ =]"
IMAGE_REGISTRY = r"\b(?:ghcr|quay|gcr|nvcr)\.io/"
MACHINE = r"(?<![\w.])/(?:root|work|Users|mnt)/\w|(?<![\w.])/home/(?!headway\b)\w"
PLACES = re.compile("|".join((INDEX, INDEX_OPTION, IMAGE_REGISTRY, MACHINE)))


def test_source_files_stay_small(floor_modules: dict[str, Path], root: Path) -> None:
    too_long = {
        str(file.relative_to(root)): lines
        for module, file in floor_modules.items()
        if (lines := len(file.read_text(encoding="utf-8").splitlines()))
        > (KERNEL_CEILING if module.startswith("headway.kernels.") else CEILING)
    }
    assert too_long == {}


def test_no_file_names_a_package_index_or_a_machine(repository_files: list[Path], root: Path) -> None:
    found = [
        f"{file.relative_to(root)}:{number}: {match.group()}"
        for file in repository_files
        if file.suffix not in BINARY
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := PLACES.search(line))
    ]
    assert found == []


def test_the_search_for_places_finds_them() -> None:
    hidden = ("https:", "//", "host", "/simple", "/torch")
    assert PLACES.search("".join(hidden))
    assert PLACES.search("".join(("see ", "/ro", "ot/project")))
    assert not PLACES.search("GET /v1/models, a/work/b and /home/headway")
