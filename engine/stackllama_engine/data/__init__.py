"""Questions with better and worse answers: their sources, their pairing, and their text form.

=============== ==================================================================================
``template``    the text template of all stages
``splits``      assignment of questions to splits, by a stable hash
``kinds``       kind of data source that a name stands for
``columns``     columns of a source that make the prompt and the responses
``row_files``   rows of local JSON Lines, JSON and Parquet files
``local``       rows of local sources: demo, prepared directories, files
``hub``         rows of hub data sets
``sources``     rows of any source, local or from the hub
``preview``     the first rows of a source
``posts``       Stack Exchange ``Posts.xml``, streamed
``spool``       posts regrouped on disk into questions with their answers
``markdown``    conversion of a post's HTML to Markdown
``pairs``       votes to scores, scores to pairs
``prepare``     conversion of a dump to a prepared directory
``staging``     directory in which a prepared directory is written
``manifest``    manifest of a prepared directory
``demo_data``   generator of the embedded demo
``demo_facts``  facts of the embedded demo
=============== ==================================================================================

Torch-free. ``datasets`` and ``pyarrow`` are imported inside the functions that need them.
"""
