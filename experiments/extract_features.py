"""Features of slides, made once: by this machine, or by all that Dask has.

    python -m experiments.extract_features \
        --config wsi_jax/configs/abmil.py --config.data.manifest=SLIDES \
        --config.encoder.weights=resnet50.safetensors --config.features=features

Of a method on tiles any config will do. `data.manifest` is a CSV as for
`experiments.cohort`, with labels or without, or just a folder of slides. What is made
is what that command would make first: given the same config and `features`, it trains
at once. Slides that have their features are skipped; `slides.csv` in the run's folder
says what became of each and why.

Across machines that share slides, weights and features by the same names:

    dask scheduler
    dask worker tcp://HOST:8786 --nthreads 2    # one for each device, on any machine
    ... --config.executor=dask --config.scheduler=tcp://HOST:8786

With two threads a worker reads one slide while it encodes another. On a machine with
several devices show each worker its own (CUDA_VISIBLE_DEVICES). Workers may come late,
and one that dies loses no more than the slide that it is at: another does it again. One
that runs other code, or sees other slides or another folder by the same name, stops the
command with its host's name.

A scheduler and its workers run whatever anyone who reaches them sends: let them listen
to a private network only (`dask scheduler --host ADDRESS`), or to those who hold a
certificate (`tls://HOST:8786` and Dask's settings `distributed.comm.tls`).

The command ends with exit code 1 where no slide has features. `max_refused` stops
trainings, not this; that more are refused than it allows is printed.
"""

from wsi_jax.cli import extract_config, launch

if __name__ == "__main__":
    launch(extract_config)
