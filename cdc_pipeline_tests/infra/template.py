"""A CloudFormation template with its functions evaluated, as far as it uses them."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).parents[2] / "infra" / "cdc_pipeline.yaml"
ACCOUNT, REGION, STACK = "123456789012", "eu-central-1", "orders-cdc"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1"
_PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackName": STACK,
}
_REQUIRED = {
    "TableName": "orders",
    "LakeTable": "orders",
    "CodeBucket": "code",
    "LakeBucket": "lake",
}
_REQUIRED_OF_A_STACK = (
    {"TableName", "LakeTable", "CodeBucket"},
    {"TableName", "LakeTable"},
    {"LakeBucket"},
)
_NOTHING = object()


class _Loader(yaml.SafeLoader):
    """YAML in which `!Sub x` is `{"Fn::Sub": x}`."""


def _function(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    if suffix == "GetAtt":
        return {"Fn::GetAtt": str(value).split(".")}
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _function)


@cache
def _template(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text("utf-8"), _Loader)


class Stack:
    """What the template says with some parameters: resources and outputs that it would have.

    A resource's attribute is its ARN where the tests want to know it, else `<resource.attribute>`.
    """

    def __init__(self, path: Path = PATH, **parameters: str) -> None:
        self._template = _template(path)
        defaults = {
            name: parameter.get("Default")
            for name, parameter in self._template["Parameters"].items()
        }
        self.required = {name for name, default in defaults.items() if default is None}
        assert self.required in _REQUIRED_OF_A_STACK
        required = {name: _REQUIRED[name] for name in self.required}
        self._parameters = defaults | required | parameters
        assert set(parameters) <= set(defaults), "a parameter that the template does not have"
        self.resources = self._chosen("Resources")
        self.outputs = {name: o["Value"] for name, o in self._chosen("Outputs").items()}

    def properties(self, name: str) -> dict[str, Any]:
        """The properties of a resource."""
        return self.resources[name]["Properties"]

    def roles(self) -> dict[str, list[dict[str, Any]]]:
        """What each role may do: its statements."""
        return {
            name: [
                statement
                for policy in resource["Properties"]["Policies"]
                for statement in policy["PolicyDocument"]["Statement"]
            ]
            for name, resource in self.resources.items()
            if resource["Type"] == "AWS::IAM::Role"
        }

    def _chosen(self, section: str) -> dict[str, Any]:
        return {
            name: self._value(content)
            for name, content in self._template[section].items()
            if self._condition(content.get("Condition"))
        }

    def _condition(self, name: str | None) -> bool:
        return name is None or self._value(self._template["Conditions"][name])

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [v for v in map(self._value, value) if v is not _NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, argument),) = value.items()
            if name == "Ref" or name.startswith("Fn::"):
                return getattr(self, "_" + name.removeprefix("Fn::").lower())(argument)
            if name == "Condition" and isinstance(argument, str):
                return self._condition(argument)
        evaluated = {name: self._value(content) for name, content in value.items()}
        return {name: v for name, v in evaluated.items() if v is not _NOTHING}

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return _NOTHING
        values = _PSEUDO | self._parameters
        return values[name] if name in values else self._named(name)

    def _named(self, resource: str) -> str:
        """What `Ref` gives for a resource: in this template its name, in small letters."""
        assert resource in self._template["Resources"], f"{resource} is nothing in the template"
        return f"the-{resource.lower()}"

    def _getatt(self, path: list[str]) -> str:
        resource, attribute = path
        assert resource in self._template["Resources"], f"{resource} is nothing in the template"
        if attribute != "Arn":
            return f"<{resource}.{attribute}>"
        if resource == "Bucket":
            return f"arn:aws:s3:::{self._named(resource)}"
        return f"arn:aws:service:{REGION}:{ACCOUNT}:{self._named(resource)}"

    def _sub(self, argument: Any) -> str:
        text, more = (argument, {}) if isinstance(argument, str) else argument
        own = {name: self._value(value) for name, value in more.items()}

        def replace(found: re.Match[str]) -> str:
            name = found[1]
            if name in own:
                return own[name]
            return self._getatt(name.split(".")) if "." in name else str(self._ref(name))

        return re.sub(r"\$\{([^}]+)\}", replace, text)

    def _if(self, argument: list[Any]) -> Any:
        name, yes, no = argument
        return self._value(yes if self._condition(name) else no)

    def _join(self, argument: list[Any]) -> str:
        separator, values = map(self._value, argument)
        # A list among the parameters is written with commas.
        return separator.join(values.split(",") if isinstance(values, str) else values)

    def _equals(self, argument: list[Any]) -> bool:
        one, other = map(self._value, argument)
        return str(one) == str(other)

    def _not(self, argument: list[Any]) -> bool:
        return not self._value(argument[0])
