"""Features of slides, made once and kept; the same as `wsi-jax extract`.

    python -m experiments.extract_features \
        --config wsi_jax/configs/abmil.py --config.data.manifest=SLIDES \
        --config.encoder.weights=resnet50.safetensors --config.features=features

SLIDES is a CSV as for `experiments.cohort`, with labels or without, or a folder of
slides. Given the same config and `features`, that command then trains at once. Slides
that have their features are skipped; `slides.csv` in the run's folder says what became
of each and why. The exit code is 1 where no slide has features.

Across machines that share slides, weights and features by the same names, as task of a
job array (see docs/clusters.md), or as workers of Dask:

    ... --config.shard=auto
    dask scheduler
    dask worker tcp://HOST:8786 --nthreads 2    # one for each device, on any machine
    ... --config.executor=dask --config.scheduler=tcp://HOST:8786

On a machine with several devices show each worker its own (CUDA_VISIBLE_DEVICES). A
scheduler and its workers run whatever anyone who reaches them sends: let them listen to
a private network only (`--host ADDRESS`), or to holders of a certificate (`tls://`).
"""

from wsi_jax.commands.config_command_line import launch, run_extraction

if __name__ == "__main__":
    launch(run_extraction)
