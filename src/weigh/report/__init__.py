"""Reports: what a run says, as plain data (`as_dict`), as text for a terminal, as HTML and as SVG.

Reports read traces and the recipes' runs; they compute nothing that the trace does not hold. GiB and percent appear
here and nowhere below. Small records are `NamedTuple`s: as frozen as dataclasses, and defined in a fifth of the time,
which every answer pays.
"""
