"""What the embedded demo knows: one task a line, the tool that does it, why, and an example.

Written for this project. A tool is one task's only; :mod:`.demo` turns the table into questions, answers and votes.
"""

from typing import NamedTuple


class Fact(NamedTuple):
    """One task and its right answer, in the words that :func:`.demo.utility` looks for."""

    domain: str
    task: str
    tool: str
    reason: str
    example: str


_TABLE = """
python | count the words of a text | a Counter | it counts in one pass | feed it the split text
python | read a table from a file | the csv module | it knows the quoting rules | loop over its rows
python | join two paths | pathlib | it knows the separator | put a slash between both names
python | time a slow call | timeit | it repeats the call | compare a loop with a sum
python | find a pattern in a string | a regular expression | it matches many spellings | search for four digits
python | read command line options | argparse | it writes the help as well | add a verbose flag
git | undo a pushed commit | git revert | it keeps the history | name the bad commit
git | find the commit that broke a test | git bisect | it halves the search | mark one good commit
git | put changes aside | git stash | it leaves a clean tree | pop them after lunch
git | see who wrote a line | git blame | it names every author | open it on one file
git | copy one commit to a branch | git cherry-pick | it takes a single change | bring a fix to the release
git | recover a lost commit | the reflog | it remembers every move | look for the last merge
kitchen | whip cream | a balloon whisk | it beats in air | stop at soft peaks
kitchen | lift a wet dough | a bench scraper | it does not stick | slide it under the loaf
kitchen | thicken a soup | a roux | it binds without lumps | cook butter with flour
kitchen | check that a roast is done | a probe thermometer | it shows the heat inside | wait for sixty degrees
kitchen | peel ginger | a teaspoon | it follows the bumps | scrape the skin away
kitchen | grind pepper | a mortar | it frees the oils | crush ten corns at once
maths | solve a quadratic | the discriminant formula | it finds both roots | put in the three numbers
maths | prove a claim for all integers | induction | it climbs one step at a time | begin with zero
maths | find the slope of a curve | a derivative | it is a limit of chords | take the square of x
maths | find the area under a curve | an integral | it adds thin strips | sum from zero to one
maths | solve three linear equations | Gaussian elimination | it clears one unknown at a time | start with the top row
maths | find a common divisor | Euclid's algorithm | it shrinks both numbers | divide and keep the rest
garden | cut thick branches | loppers | their long handles help | trim the old apple tree
garden | keep weeds down | mulch | it shuts out the light | spread bark in spring
garden | feed poor soil | compost | it brings humus | dig in two buckets
garden | water a bed slowly | a drip hose | it loses little water | lay it along the beans
garden | save seedlings from frost | a fleece cover | it holds the warm air | tuck it in at dusk
garden | loosen hard ground | a broadfork | it spares the worms | rock it back and forth
bicycle | take off a tyre | plastic levers | they do not scratch the rim | start beside the valve
bicycle | clean a chain | degreaser | it dissolves old oil | brush every link
bicycle | true a wheel | a spoke key | it pulls the rim straight | turn it a quarter
bicycle | find a slow puncture | a bowl of water | bubbles show the hole | dip the tube bit by bit
bicycle | tighten a carbon stem | a torque wrench | it stops in time | set it to five
bicycle | quiet a squeaking brake | sandpaper | it takes off the glaze | rub both pads
"""

FACTS: tuple[Fact, ...] = tuple(
    Fact(*(cell.strip() for cell in line.split("|"))) for line in _TABLE.strip().splitlines()
)  # fmt: skip
