"""Examples run in the gallery as they do as scripts: without arguments, knowing their own file."""


def as_script(gallery_conf, script_vars):
    """Return the arguments of an example, and tell it where it stands."""
    script_vars["example_globals"]["__file__"] = str(script_vars["src_file"])
    return []
