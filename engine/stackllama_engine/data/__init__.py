"""Questions with better and worse answers: where they come from, how they are paired, how they read as text.

=============== ==================================================================================
``template``    the one template of all stages
``splits``      which part a question belongs to: a stable hash
``posts``       Stack Exchange ``Posts.xml``, streamed
``spool``       posts regrouped into questions with their answers, on disk
``markdown``    HTML of a post to Markdown
``pairs``       votes to scores, scores to pairs
``prepare``     a dump to a prepared directory
``manifest``    what a prepared directory says of itself
``files``       rows of local JSON Lines, JSON and Parquet files
``hub``         rows of hub data sets
``sources``     rows of any source: prepared directory, file, hub data set, embedded demo
``preview``     the first rows of a source
``demo``        the embedded demo's generator
=============== ==================================================================================

Torch-free. ``datasets`` and ``pyarrow`` are imported inside the functions that need them.
"""
