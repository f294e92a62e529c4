"""YAML as people write flags: `1e-5` is a number, `no`, `010` and `1:30` are words, and no key comes twice."""

import re

import yaml


BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float"))
TRUE_OR_FALSE = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
WHOLE = re.compile(r"^[-+]?(?:0|[1-9]\d*)$")  # whose digits are kept as they are
NUMBER = re.compile(
    r"^[-+]?(?:(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is there twice", node.value[place][0].start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would take for something else."""


for _kind in (_Loader, _Dumper):  # in place of the resolvers of YAML 1.1, to which `010` is 8 and `1:30` is 90
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (BOOL, INT, FLOAT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(BOOL, TRUE_OR_FALSE, list("tTfF"))
    _kind.add_implicit_resolver(INT, WHOLE, list("-+0123456789"))
    _kind.add_implicit_resolver(FLOAT, NUMBER, list("-+.0123456789"))


def load(text: str):
    """What a YAML document holds.

    Raises:
        yaml.YAMLError: if it is none, or has a key twice.
    """
    return yaml.load(text, _Loader)


def dump(values: dict) -> str:
    """A YAML document of which `load` makes the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
