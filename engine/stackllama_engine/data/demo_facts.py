"""Facts of the embedded demo: one task per line, its tool, the reason, an example, and the popular wrong tool.

Written for this project. A tool is one task's only; :mod:`.demo_data` turns the table into questions, answers and
votes.
"""

from typing import NamedTuple


class Fact(NamedTuple):
    """One task and its right answer, in the words that :func:`.demo_data.utility` searches for."""

    domain: str
    task: str
    tool: str
    reason: str
    example: str
    popular: str
    """Tool that most people name instead: a wrong answer."""


_TABLE = """
git | undo a pushed commit | git revert | it keeps the history | name the bad commit | git reset
git | find the commit that broke a test | git bisect | it halves the search | mark one good commit | git log
git | put changes aside | git stash | it leaves a clean tree | pop them after lunch | git branch
git | see who wrote a line | git blame | it names every author | open it on one file | git show
kitchen | whip cream | a balloon whisk | it beats in air | stop at soft peaks | a fork
kitchen | lift a wet dough | a bench scraper | it does not stick | slide it under the loaf | a spatula
kitchen | thicken a soup | a roux | it binds without lumps | cook butter with flour | raw flour
kitchen | peel ginger | a teaspoon | it follows the bumps | scrape the skin away | a knife
garden | cut thick branches | loppers | their long handles help | trim the old apple tree | hedge shears
garden | keep weeds down | mulch | it shuts out the light | spread bark in spring | salt
garden | feed poor soil | compost | it brings humus | dig in two buckets | fertilizer
garden | water a bed slowly | a drip hose | it loses little water | lay it along the beans | a sprinkler
"""

FACTS: tuple[Fact, ...] = tuple(
    Fact(*(cell.strip() for cell in line.split("|"))) for line in _TABLE.strip().splitlines()
)
