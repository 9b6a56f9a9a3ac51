"""An episode's arrays behind pointers: what compiled functions hand to each other.

A named tuple of arrays is passed by value, seven and more words per array at every call; an episode has a hundred
arrays. Behind a pointer the same fields cost nothing to pass: the kernel runs twice as fast and compiles in less time.
Field names are those of the tuples, so that functions, the core's own included, take either.
"""

from typing import Any, NamedTuple

from numba.core import types
from numba.experimental import structref

from ccr.book import Book
from envs.kernel.choice import Chooser
from envs.kernel.routers import Names, Router
from envs.kernel.state import Events, Jobs, Nodes


class Reference(types.StructRef):
    """A pointer to fields whose types are those of the arrays put there."""

    def preprocess_fields(self, fields: Any) -> Any:
        """Fields hold any value of their type, not one literal."""
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


@structref.register
class NodesType(Reference):
    """Type of :class:`NodesRef`."""


@structref.register
class JobsType(Reference):
    """Type of :class:`JobsRef`."""


@structref.register
class EventsType(Reference):
    """Type of :class:`EventsRef`."""


@structref.register
class NamesType(Reference):
    """Type of :class:`NamesRef`."""


@structref.register
class RouterType(Reference):
    """Type of :class:`RouterRef`."""


@structref.register
class BookType(Reference):
    """Type of :class:`BookRef`."""


@structref.register
class ChooserType(Reference):
    """Type of :class:`ChooserRef`."""


class NodesRef(structref.StructRefProxy):
    """:class:`envs.kernel.state.Nodes` behind a pointer."""


class JobsRef(structref.StructRefProxy):
    """:class:`envs.kernel.state.Jobs` behind a pointer."""


class EventsRef(structref.StructRefProxy):
    """:class:`envs.kernel.state.Events` behind a pointer."""


class NamesRef(structref.StructRefProxy):
    """:class:`envs.kernel.routers.Names` behind a pointer."""


class RouterRef(structref.StructRefProxy):
    """:class:`envs.kernel.routers.Router` behind a pointer."""


class BookRef(structref.StructRefProxy):
    """:class:`ccr.book.Book` behind a pointer."""


class ChooserRef(structref.StructRefProxy):
    """:class:`envs.kernel.choice.Chooser` behind a pointer."""


def behind_pointer(proxy: Any, kind: Any, fields: type[NamedTuple]) -> None:
    """Let compiled code make a ``proxy`` of type ``kind`` from the fields of the tuple, in their order."""
    structref.define_proxy(proxy, kind, list(fields._fields))


behind_pointer(NodesRef, NodesType, Nodes)
behind_pointer(JobsRef, JobsType, Jobs)
behind_pointer(EventsRef, EventsType, Events)
behind_pointer(NamesRef, NamesType, Names)
behind_pointer(RouterRef, RouterType, Router)
behind_pointer(BookRef, BookType, Book)
behind_pointer(ChooserRef, ChooserType, Chooser)
