"""Another tool's CSVs and splits in, our manifest out; the same as `wsi-jax import`."""

from wsi_jax.cli import run_command

if __name__ == "__main__":
    run_command("import")
