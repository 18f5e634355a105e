"""A method of one object goes through something else for a while: how trainers and gradient scalers are listened to.

It stays a method in all that others look for: it can be bound anew, as torch's schedulers do with `step`, and a copy
of the object, pickled or deep, has the method of its class.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any


def wrap_method(owner: Any, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    """Let a method of one object (not of its class) go through `replacement(original, ...)`; returns the way back.

    >>> class Greeter:
    ...     def greet(self, name):
    ...         return f"hello {name}"
    >>> greeter = Greeter()
    >>> give_back = wrap_method(greeter, "greet", lambda original, name: original(name) + "!")
    >>> greeter.greet("you")
    'hello you!'
    >>> give_back()
    >>> greeter.greet("you")
    'hello you'
    """
    before, original = vars(owner).get(name), getattr(owner, name)

    @functools.wraps(getattr(original, "__func__", original))
    def through(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is owner:
            return replacement(original, *args, **kwargs)
        # a deep copy, which nobody listens to
        return copy.deepcopy(original, {id(owner): self})(*args, **kwargs)

    through.__name__ = name  # by which pickle finds the method of the copy
    wrapped = types.MethodType(through, owner)

    def give_back() -> None:
        # where somebody wrapped it again theirs stays, and goes on through ours
        if vars(owner).get(name) is wrapped:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    setattr(owner, name, wrapped)
    return give_back
