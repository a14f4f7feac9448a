"""Slides and labels in, a run folder out: any cohort, any method.

    python -m experiments.cohort --config wsi_jax/configs/abmil.py \
        --config.data.manifest=my_slides.csv

The same command resumes a run that was stopped, and prints the report of a finished
one. Any field of the config can be set from the command line: --config.grid.mpp=0.25.
"""

from wsi_jax.commands.config_command_line import launch

if __name__ == "__main__":
    launch()
