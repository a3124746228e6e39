"""The documentation site: `sphinx-build -W --keep-going -n docs site`, with the extra `docs`."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_site")]

import gradstab  # noqa: E402

project = "gradstab"
author = "The gradstab developers"
version = release = gradstab.__version__
html_title = f"gradstab {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "public_names",
    "root_pages",
    "rule_pages",
]
exclude_patterns = ["_build", "_site"]
needs_sphinx = "8.2"

# Headings can be linked to (`page.md#heading`); a link to none is a warning, and so an error.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]

# Docstrings write code in single backticks.
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
# Types in signatures lead to public names of gradstab; private and foreign ones have no page.
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
pygments_style = "default"
pygments_dark_style = "monokai"
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

# The examples are run at every build, in their quick form; one that fails fails the build.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "gallery.Order",
    "reset_argv": "gallery.arguments",
    "reset_modules": ("matplotlib", "gallery.reset"),
    "only_warn_on_example_error": False,
    "abort_on_example_error": False,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "remove_config_comments": True,
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
}
