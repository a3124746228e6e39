"""How sphinx-gallery runs the examples: quickly, in this order, each with a fresh session."""

from pathlib import Path

ORDER = (
    "wrap_existing",
    "callback_only",
    "diagnose_and_repair",
    "in_a_notebook",
    "corrected_article_cnn",
    "train_and_resume",
    "custom_loop",
    "several_workers",
    "transformer_spikes",
    "long_memory_rnn",
    "gan_two_optimizers",
    "normalization_free_cnn",
    "fine_tuning",
    "shared_weights",
)


class Order:
    """Sort key of the pages: as a reader comes to need them; what is not listed comes last."""

    def __init__(self, folder):
        """Keep nothing: there is one folder."""

    def __call__(self, name):
        """Return the place of an example."""
        stem = Path(name).stem
        return (ORDER.index(stem) if stem in ORDER else len(ORDER), stem)

    def __repr__(self):
        """Return the same at every build, so that Sphinx sees no change of the configuration."""
        return "gallery.Order"


def arguments(configuration, script):
    """Return the command line of each example."""
    return ["--quick"]


def reset(configuration, script):
    """Forget the models and the state of the example before."""
    import keras

    keras.utils.clear_session()
    keras.config.set_dtype_policy("float32")
