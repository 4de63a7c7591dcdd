"""Self-validating data: pydantic models, with each validation error as one sentence."""

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
    """Marks a number that must lie in a range, both ends included."""

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
    """The content of a JSON file, or an object in it; undeclared entries are kept."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


@dataclass_transform(frozen_default=True)
def checked(cls: type[T]) -> type[T]:
    """The class as a frozen dataclass with validated fields; an invalid value raises SettingsError."""
    validated: Any = checked_dataclass(frozen=True, config=STRICT)(cls)
    pydantic_init = validated.__init__

    def init(self: Any, *arguments: Any, **values: Any) -> None:
        try:
            pydantic_init(self, *arguments, **values)
        except ValidationError as error:
            raise SettingsError(f"{explained(error)}.") from None

    validated.__init__ = init
    return validated  # type: ignore[no-any-return]


def explained(error: ValidationError) -> str:
    """The first validation error as a sentence: where it is, what the value must be, and what it is."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    place, error_type = place or "the whole file", first["type"]
    got = repr(first.get("input"))
    got = got if len(got) <= 80 else f"{got[:77]}..."
    kind = error_type.rsplit("_", 1)[0] if error_type.endswith(("_type", "_parsing")) else ""
    context = first.get("ctx", {})
    if error_type == "finite_number":
        return f"{place} must be a finite number (got {got})"
    if error_type == "missing":
        return f"{place} is missing"
    if error_type in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown entry '{place}'"
    if error_type == "int_from_float" or kind in KINDS:
        return f"{place} must be {KINDS.get(kind, KINDS['int'])} (got {got})"
    if error_type == "literal_error":
        return f"{place} must be one of {context['expected'].replace(' or ', ', ')} (got {got})"
    if error_type in ("out_of_range", "greater_than", "greater_than_equal", "less_than_equal"):
        return f"{place} {got} is out of range: use {first['msg'].removeprefix('Input should be ')}"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"


def _is_branch(part: Any) -> bool:
    """Whether a part of an error's location names a branch of a union rather than an entry of the data."""
    return isinstance(part, str) and (any(sign in part for sign in "[(") or part[:1].isupper())


def choices(cls: Any, name: str) -> tuple[Any, ...]:
    """The values that a field declared as Literal allows."""
    return get_args(cls.__pydantic_fields__[name].annotation)


def limits(cls: Any, name: str) -> tuple[Any, Any]:
    """The smallest and the largest value of a field declared with Between."""
    return next((mark.low, mark.high) for mark in cls.__pydantic_fields__[name].metadata if isinstance(mark, Between))


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def convert(check: Callable[[Any], Any]) -> BeforeValidator:
    """A field validator whose own error messages appear in the explanation."""

    def run(value: Any) -> Any:
        try:
            return check(value)
        except (SwmError, TypeError, LookupError, AttributeError) as error:  # data of the wrong type
            raise ValueError(str(error).rstrip(".")) from None

    return BeforeValidator(run)


def from_object(make: Callable[[dict[str, Any]], Any]) -> BeforeValidator:
    """A field validator that also accepts a JSON object, which `make` converts to the value."""
    return convert(lambda value: make(value) if isinstance(value, dict) else value)


Many = Annotated[tuple[T, ...], BeforeValidator(_listed)]
"""A list in JSON or YAML, a tuple in memory."""
