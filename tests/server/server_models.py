"""A model of a test's repository: its folder and config."""

CPU = "instance_group [{ kind: KIND_CPU count: %d }]\n"


def tensor(name, data_type, dims):
    return f'{{ name: "{name}" data_type: TYPE_{data_type} dims: {dims} }}'


def config(name, inputs, outputs, rest, backend="pytorch", batch=16):
    kind = "platform" if backend == "ensemble" else "backend"
    return (
        f'name: "{name}"\n{kind}: "{backend}"\nmax_batch_size: {batch}\n'
        f"input [{', '.join(inputs)}]\noutput [{', '.join(outputs)}]\n{rest}"
    )


def write_model(root, text, name, script=None):
    folder = root / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text)
    (folder / "1" / "build.json").write_text('{"files_sha256": {}}')
    if script is not None:
        script.save(str(folder / "1" / "model.pt"))
    return folder


def in_process(model):
    """A Python model that the embedded server runs in its own process."""
    (model / "configs").mkdir(exist_ok=True)
    text = (model / "config.pbtxt").read_text()
    assert 'backend: "python"' in text
    (model / "configs" / "embedded.pbtxt").write_text(text.replace('"python"', '"python_in_process"'))
