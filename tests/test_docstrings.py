"""
Every public name explains itself: what it is, its arguments, what it raises, where it comes from, and an example that runs.

A docstring of a base class serves the classes below it.
"""

import ast
import builtins
import doctest
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tiny import patterned_images, tiny_resnet, training_arguments

import hf_watermark
from hf_watermark import Owner, WaterMASConfig, WaterMASTrainer, mapping, plan_key
from hf_watermark.configuration import require
from hf_watermark.mapping import BUILT_IN, KINDS


PACKAGE = Path(hf_watermark.__file__).parent
PUBLIC = {name: getattr(hf_watermark, name) for name in hf_watermark.__all__ if name != "__version__"}
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example")
# A single array, not a dict or a list of them.
ARRAY = re.compile(r"\(`(?:torch\.Tensor|np\.ndarray)`")
ENTRY = re.compile(r"^    (\S.*?):(?: |$)", re.MULTILINE)


def own_classes(item: Any) -> list[type]:
    """A class and its bases, as far as they are of this package."""
    return [base for base in item.__mro__ if base.__module__.startswith("hf_watermark")]


def written(item: Any) -> str:
    """The docstring that stands in the source; a dataclass without one is given its signature."""
    doc = vars(item).get("__doc__") if inspect.isclass(item) else item.__doc__
    return "" if doc is None or doc.startswith(f"{item.__name__}(") else inspect.cleandoc(doc)


def docs_of(item: Any) -> list[str]:
    """The docstrings that speak of a name, its own first."""
    return [written(base) for base in (own_classes(item) if inspect.isclass(item) else [item])]


def section(doc: str, title: str) -> str:
    found = re.search(rf"^{title}:\n(.*?)(?=^(?:{'|'.join(SECTIONS)}):\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def entries(doc: str, title: str) -> list[str]:
    return [found[1] for found in ENTRY.finditer(section(doc, title))]


def arguments_of(doc: str) -> list[str]:
    return [name for entry in entries(doc, "Args") for name in entry.partition(" (")[0].split(", ")]


def parameters_of(item: Any, named: bool = False) -> set[str]:
    """Names in a signature; with `named` only those that a caller names, so that `*args` and `**kwargs` need no line of their own."""
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) if named else ()
    found = inspect.signature(item).parameters.values()
    return {item.name for item in found if item.kind not in free} - {"self", "cls"}


def function_of(member: Any) -> Callable[..., Any] | None:
    inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return inner if inspect.isfunction(inner) else None


def is_ours(function: Callable[..., Any]) -> bool:
    """Not made by a library, as the methods of dataclasses are."""
    return function.__code__.co_filename.startswith(str(PACKAGE))


# Public methods and properties of public classes and of their bases.
MEMBERS = {
    f"{base.__name__}.{name}": (base, member)
    for item in PUBLIC.values()
    if inspect.isclass(item)
    for base in own_classes(item)
    for name, member in vars(base).items()
    if not name.startswith("_") and (function := function_of(member)) and is_ours(function)
}


def doc_of_member(name: str) -> str:
    """As `inspect` finds it: an override is explained by what it overrides, in whatever library."""
    base, member = MEMBERS[name]
    return inspect.getdoc(member if isinstance(member, property) else getattr(base, name.partition(".")[2])) or ""


def test_every_name_says_what_it_is():
    assert [name for name, item in PUBLIC.items() if not written(item)] == []
    assert [name for name in MEMBERS if not doc_of_member(name)] == []


def is_called(item: Any) -> bool:
    """Whether a user makes one: no exception, and no enumeration."""
    return not (inspect.isclass(item) and issubclass(item, BaseException | Enum))


@pytest.mark.parametrize("name", [name for name, item in PUBLIC.items() if is_called(item)])
def test_args_are_those_of_the_signature(name):
    docs = docs_of(PUBLIC[name])
    explained = [argument for doc in docs for argument in arguments_of(doc)]
    assert parameters_of(PUBLIC[name], named=True) <= set(explained), "not explained"
    assert set(arguments_of(docs[0])) <= parameters_of(PUBLIC[name]), "not in the signature"
    assert len(set(arguments_of(docs[0]))) == len(arguments_of(docs[0])), "explained twice"


def test_args_of_methods_are_those_of_their_signature():
    functions = {name: function_of(member) for name, (_, member) in MEMBERS.items()}
    wrong = {name: set(arguments_of(written(item))) - parameters_of(item) for name, item in functions.items()}
    assert {name: arguments for name, arguments in wrong.items() if arguments} == {}


def test_tensors_have_shapes():
    docs = [doc for item in PUBLIC.values() for doc in docs_of(item)] + [doc_of_member(name) for name in MEMBERS]
    arguments = [text for doc in docs for text in re.split(r"^    (?=\S)", section(doc, "Args"), flags=re.MULTILINE)]
    tensors = [text for text in arguments if ARRAY.search(text)]
    assert tensors
    assert [text for text in tensors if "`[" not in text] == []


def exception_of(entry: str, module: str) -> type[BaseException]:
    """What a line under `Raises:` names: a builtin, a name of the module, or `[`~room.Name`]`."""
    path = re.fullmatch(r"\[?`~?([\w.]+)`\]?", entry)
    assert path, f"{entry!r} names no exception"
    room, _, name = path[1].rpartition(".")
    places = [import_module(f"hf_watermark.{room}")] if room else [builtins, import_module(module), hf_watermark]
    found = next(getattr(place, name) for place in places if hasattr(place, name))
    assert issubclass(found, BaseException)
    return found


def raised_by(function: Callable[..., Any]) -> set[type[BaseException]]:
    """Exceptions that the function itself makes; `require` raises a `ValueError`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    called = [
        node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    found = [(vars(builtins) | function.__globals__).get(name) for name in called]
    errors = {item for item in found if inspect.isclass(item) and issubclass(item, BaseException)}
    return errors | {ValueError for item in found if item is require}


def unnamed(raised: set[type[BaseException]], docs: list[str], module: str) -> list[str]:
    named = tuple(exception_of(entry, module) for doc in docs for entry in entries(doc, "Raises"))
    return [error.__name__ for error in raised if not issubclass(error, named)]


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_raised_is_named(name):
    item = PUBLIC[name]
    makers = [item]
    if inspect.isclass(item):
        found = [vars(base).get(maker) for base in own_classes(item) for maker in ("__init__", "__post_init__")]
        makers = [maker for maker in found if inspect.isfunction(maker) and is_ours(maker)]
    raised = {error for maker in makers for error in raised_by(maker)}
    assert unnamed(raised, docs_of(item), item.__module__) == []


def test_what_methods_raise_is_named():
    found = {
        name: unnamed(raised_by(function_of(member)), [doc_of_member(name)], base.__module__)
        for name, (base, member) in MEMBERS.items()
    }
    assert {name: errors for name, errors in found.items() if errors} == {}


@pytest.mark.parametrize("method", BUILT_IN)
def test_every_method_names_its_paper(method):
    config, *others = (BUILT_IN[method].load(kind) for kind in KINDS)
    assert re.search(r"Paper: .*\*.*\*.*\b20\d\d\b", written(config), re.DOTALL)
    assert [other.__name__ for other in others if f"[`{config.__name__}`]" not in written(other)] == []


# Examples


class WhatIsShown(doctest.OutputChecker):
    """Compares what an example shows; where it shows nothing, anything may come."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags | doctest.ELLIPSIS)


def example_of(docs: list[str]) -> str:
    return next((text for doc in docs if (text := section(doc, "Example"))), "")


# By the text: one of a base class is run once.
EXAMPLES = {example_of(docs_of(item)): name for name, item in PUBLIC.items()}
EXAMPLES |= {text: name for name in MEMBERS if (text := example_of([doc_of_member(name)]))}


def test_every_name_has_an_example():
    assert [name for name, item in PUBLIC.items() if ">>> " not in example_of(docs_of(item))] == []


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What examples take for granted, and the files that an earlier training left: a small net that is marked at once."""
    folder = tmp_path_factory.mktemp("left")
    config = WaterMASConfig(bits=256, subkeys=2, switch_in=0.0, strength=0.0)
    ds, owner = patterned_images(), Owner.create()
    key = plan_key(net(), ds, config, owner)
    args = training_arguments(folder / "my-model", max_steps=1, logging_steps=1)
    trainer = WaterMASTrainer(model=net(), args=args, train_dataset=ds, watermark=config, key=key)
    trainer.train()
    trainer.save_model()
    key.save(folder / "keys" / "my-model")
    config.save_pretrained(folder / "config")
    return folder, {"ds": ds, "args": args, "owner": owner, "key": key}


def net() -> Any:
    return tiny_resnet(hidden_sizes=[32, 64])


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for text, name in EXAMPLES.items()])
def test_example_runs(text, left, tmp_path, monkeypatch):
    shutil.copytree(left[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mapping, "_registered", {})
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(code[1], PUBLIC | left[1] | {"model": net()}, "example", None, None)
    report: list[str] = []
    doctest.DocTestRunner(WhatIsShown(), verbose=False).run(test, out=report.append)
    assert not report, "".join(report)
