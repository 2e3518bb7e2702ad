"""What the clusters of a model folder are called: matching.json, a description for people that decides no label."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cause_lite.runtime.files import UserError, read_json, write_json

MATCHING_FILE = "matching.json"


class ClusterMatch(BaseModel):
    """How a cluster meets the classes of labelled images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cluster: int = Field(ge=0)
    one_to_one: str | None  # the class that the best one-to-one matching gives it; None where it is left over
    most: str | None  # the class of most of its labelled pixels; None where it has none
    share: float = Field(ge=0, le=1)  # of its labelled pixels that are of that class
    pixels: int = Field(ge=0)  # that are labelled


class Matching(BaseModel):
    """Clusters, in the order of their numbers, and the classes that they meet on labelled images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    split: str
    images: int
    classes: list[str]
    clusters: list[ClusterMatch]
    date: str

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each cluster: the class of most of its pixels, or its number where it met no labelled pixel."""
        return tuple(each.most or f"cluster {each.cluster}" for each in self.clusters)


def write_matching(folder: Path, matching: Matching) -> None:
    """Write matching.json into a model folder."""
    write_json(folder / MATCHING_FILE, matching.model_dump())


def read_matching(folder: Path, clusters: int) -> Matching | None:
    """Return the matching of `clusters` clusters that a model folder keeps; raise UserError where it is damaged."""
    path = folder / MATCHING_FILE
    if not path.exists():
        return None
    try:
        matching = Matching.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: `{place}`: {first['msg']}; delete the file, and evaluate again") from error
    if [each.cluster for each in matching.clusters] != list(range(clusters)):
        raise UserError(f"{path}: must name clusters 0 to {clusters - 1} in order; delete the file, and evaluate again")
    return matching
