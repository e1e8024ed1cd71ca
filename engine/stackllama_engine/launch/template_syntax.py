"""Syntax of a chat template, checked at launch where jinja2 is installed; it comes with torch and transformers."""

from importlib.util import find_spec

from ..contract.prompt_format import syntax_error


def check_syntax(template: str) -> str | None:
    """Return what is wrong with a chat template's syntax; None if nothing is, or jinja2 is not installed.

    It is compiled with the tags that transformers knows: loop controls, and ``generation``, which marks what the
    assistant says (https://huggingface.co/docs/transformers/chat_templating_writing).
    """
    if find_spec("jinja2") is None:
        return None
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    Generation.tags = {"generation"}
    environment = Environment(autoescape=False, extensions=["jinja2.ext.loopcontrols", Generation])  # noqa: S701
    try:
        environment.compile(template)
    except TemplateSyntaxError as error:
        return syntax_error(error)
    return None
