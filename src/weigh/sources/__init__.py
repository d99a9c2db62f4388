"""Where models come from: a bundled catalogue, config files, the literature's dicts, live objects.

A source returns plain data (a config, the name and shape of tensors) and knows no family: whether a config makes sense
is for the family that reads it to say.
"""
