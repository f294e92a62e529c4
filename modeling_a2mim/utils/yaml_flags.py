"""YAML as people write flags: `1e-5` is a number, `no` is a word, and no key comes twice."""

import re

import yaml


BOOL, FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
TRUE_OR_FALSE = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
NUMBER = re.compile(r"^[-+]?(?:(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$")


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


for _kind in (_Loader, _Dumper):  # the resolvers of YAML 1.2 in place of those of YAML 1.1, which PyYAML has
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (BOOL, FLOAT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(BOOL, TRUE_OR_FALSE, list("tTfF"))
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
