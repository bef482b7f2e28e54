"""What a pushed benchmark holds: a manifest that names every file, its bytes and its hash.

``manifest.json`` comes last and in one piece: without it nothing is there, and with it everything it names was. Files
lie under ``objects/`` by their hashes, so a second push changes none that the manifest of the first one names.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.remote.place import Place

MANIFEST, OBJECTS = "manifest.json", "objects"
_MOST = 1 << 28  # bytes of a manifest
_PART = r"[^./\\\x00][^/\\\x00]*"
# Names within the benchmark's folder: nothing hidden, nothing that leads out of it.
_Name = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART}){{0,5}}$", max_length=1000)]


class Pushed(BaseModel):
    """One file: its hash, in hexadecimal digits, and its length."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(..., pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(..., ge=0)

    @property
    def object(self) -> str:
        """Where it lies, under ``objects/``."""
        return f"{self.sha256[:2]}/{self.sha256}"


class Contents(BaseModel):
    """The manifest.

    Attributes:
        format: of the manifest.
        benchmark: the folder's name.
        files: by their names within the benchmark's folder.
        sha256: of all the rest.
    """

    format: Literal[1] = 1
    benchmark: Annotated[str, Field(pattern=rf"^{_PART}$", max_length=255)]
    files: dict[_Name, Pushed]
    sha256: str = ""

    def digest(self) -> str:
        """SHA-256 of the manifest but for this field."""
        text = json.dumps(self.model_dump(exclude={"sha256"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, place: Place) -> None:
        """Put it in place; from then on it counts."""
        sealed = self.model_copy(update={"sha256": self.digest()})
        place.write(MANIFEST, (json.dumps(sealed.model_dump(), indent=1) + "\n").encode())


def read_contents(place: Place) -> Contents | None:
    """The manifest of a place; None where there is none.

    Raises:
        UserError: it is damaged, or was changed.
    """
    size = place.size(MANIFEST)
    if size is None:
        return None
    where = f"{place.url}/{MANIFEST}"
    if size > _MOST:
        raise UserError(f"{where}: refused: {size} bytes, more than a manifest has")
    try:
        found = Contents.model_validate_json(place.read(MANIFEST))
    except FileNotFoundError:
        return None
    except ValidationError as e:
        first = e.errors()[0]
        at = ".".join(map(str, first["loc"]))[:100] or "the file"
        raise UserError(f"{where}: damaged: {at}: {one_line(first['msg'])}") from None
    if found.sha256 != found.digest():
        raise UserError(f"{where}: changed since it was pushed (its hash is another)")
    return found
