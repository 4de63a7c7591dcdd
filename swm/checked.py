"""Typed data that checks itself: pydantic's models, and its errors as one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from typing_extensions import dataclass_transform

from swm.errors import SettingsError, SwmError

T = TypeVar("T")
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "model": "an object",
    "dataclass": "an object",
}


@dataclass(frozen=True)
class Between:
    """Marks a number that has to lie in a range, both ends included."""

    low: float
    high: float

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: float) -> float:
        if not self.low <= value <= self.high:  # also for NaN
            raise PydanticCustomError("out_of_range", f"{self.low:,} to {self.high:,}")  # type: ignore[arg-type]
        return value


STRICT = ConfigDict(strict=True, extra="forbid", validate_by_name=True, validate_by_alias=True)


class Record(BaseModel):
    """What a JSON file holds, or an object in it; entries that are not declared are kept."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


@dataclass_transform(frozen_default=True)
def checked(cls: type[T]) -> type[T]:
    """The class as a frozen dataclass whose fields are checked; a wrong one raises SettingsError in a sentence."""
    made: Any = checked_dataclass(frozen=True, config=STRICT)(cls)
    plain = made.__init__

    def init(self: Any, *arguments: Any, **values: Any) -> None:
        try:
            plain(self, *arguments, **values)
        except ValidationError as error:
            raise SettingsError(f"{explained(error)}.") from None

    made.__init__ = init
    return made  # type: ignore[no-any-return]


def explained(error: ValidationError) -> str:
    """The first thing that is wrong: its place, what it must be, and what it is."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    place, what = place or "the whole file", first["type"]
    got = repr(first.get("input"))
    got = got if len(got) <= 80 else f"{got[:77]}..."
    kind = what.rsplit("_", 1)[0] if what.endswith(("_type", "_parsing")) else ""
    context = first.get("ctx", {})
    if what == "finite_number":
        return f"{place} must be a finite number (got {got})"
    if what == "missing":
        return f"{place} is missing"
    if what in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown entry '{place}'"
    if what == "int_from_float" or kind in KINDS:
        return f"{place} must be {KINDS.get(kind, KINDS['int'])} (got {got})"
    if what == "literal_error":
        return f"{place} must be one of {context['expected'].replace(' or ', ', ')} (got {got})"
    if what in ("out_of_range", "greater_than", "greater_than_equal", "less_than_equal"):
        return f"{place} {got} is out of range: use {first['msg'].removeprefix('Input should be ')}"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"


def _is_branch(part: Any) -> bool:
    """Whether a part of a place names a branch of a union, not an entry of the data."""
    return isinstance(part, str) and any(sign in part for sign in "[(")


def choices(cls: Any, name: str) -> tuple[Any, ...]:
    """The values that a field declared as Literal takes."""
    return get_args(cls.__pydantic_fields__[name].annotation)


def limits(cls: Any, name: str) -> tuple[Any, Any]:
    """The smallest and the largest value of a field declared with Between."""
    return next((mark.low, mark.high) for mark in cls.__pydantic_fields__[name].metadata if isinstance(mark, Between))


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def said(check: Callable[[Any], Any]) -> BeforeValidator:
    """A converter for a field whose own messages stand in the explanation."""

    def run(value: Any) -> Any:
        try:
            return check(value)
        except (SwmError, TypeError, LookupError, AttributeError) as error:  # data of another kind
            raise ValueError(str(error).rstrip(".")) from None

    return BeforeValidator(run)


def from_object(make: Callable[[dict[str, Any]], Any]) -> BeforeValidator:
    """Lets a field be given as a JSON object, which `make` makes the value of."""
    return said(lambda value: make(value) if isinstance(value, dict) else value)


Many = Annotated[tuple[T, ...], BeforeValidator(_listed)]
"""A list in JSON or YAML, a tuple in memory."""
