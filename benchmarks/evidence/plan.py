"""Which methods are compared, with which settings. All arms of a table share what is not named in the arm."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.evidence.run import Arm, Data, Run

DIGITS = Data()
SHARES = {"1 % (1 a class)": 1, "10 % (14 a class)": 14, "100 % (1,438 images)": 0}  # labels: images of each class

# A short run of the preset `digits`; the number of epochs was set so that plain training of all digits reaches 98 %.
SHORT: dict[str, Any] = {"epochs": 12, "warmup_epochs": 1.0}
PRETRAIN: dict[str, Any] = {"epochs": 20, "pictures": 0}
PRETRAIN_PHOTOS: dict[str, Any] = {"epochs": 60, "pictures": 0, "flip": True}
LONG_TAIL: dict[str, Any] = {"epochs": 20, "warmup_epochs": 2.0, "batch_size": 32, "label_smoothing": 0.0}
IMBALANCE = 50
AFTER_PLAIN: dict[str, Any] = {"epochs": 6, "warmup_epochs": 1.0}
EPSILONS = (8, 16)  # of the attacks, in 255ths; a grey level of the digits is 16
# Sizes for a run of 240 steps; PaCo's own (queue 8192, dim 128, momentum 0.999) are for runs of 100,000.
SHORT_PACO: dict[str, Any] = {"paco_queue": 384, "paco_dim": 32}

LONG_TAIL_METHODS: dict[str, dict[str, Any]] = {
    "class weights 1/n": {"class_weights": "inverse"},
    "class weights 1/sqrt(n)": {"class_weights": "inverse_sqrt"},
    "class weights, effective number": {"class_weights": "effective"},
    "balanced softmax = logit adjustment in training, tau 1": {"loss": "balanced_softmax"},
    "LDAM-DRW": {"loss": "ldam"},
    "focal": {"loss": "focal"},
    "class-balanced sampler": {"sampler": "class_balanced"},
    "square-root sampler": {"sampler": "square_root"},
    "PaCo": {"loss": "paco", "paco_momentum": 0.99, **SHORT_PACO},
    "GPaCo": {"loss": "gpaco", **SHORT_PACO},
}
AFTERWARDS: dict[str, dict[str, Any]] = {
    "logit adjustment post hoc, tau 1": {"logit_adjustment": 1.0},
    "tau-norm, tau 0.7": {"tau_norm": 0.7},
    "tau-norm, tau 1": {"tau_norm": 1.0},
}
CRT: dict[str, Any] = {"head_only": True, "sampler": "class_balanced", "epochs": 10}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "nothing": {"augmentation": "none"},
    "RandAugment": {"augmentation": "none", "rand_augment": "n2-m9"},
    "affine": {},
    "affine + RandAugment": {"rand_augment": "n2-m9"},
}
ON_AND_OFF = (("nothing", "RandAugment"), ("affine", "affine + RandAugment"))
DEFENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {}),
    "Fast-AT, epsilon 8": ("fast_at", {"adversarial": "fast_at", "epsilon": 8.0}),
    "AdvProp, epsilon 4": ("advprop", {"adversarial": "advprop", "epsilon": 4.0}),
}


def finetune(name: str, data: Data, seed: int, settings: dict[str, Any], start: Run | None = None) -> Run:
    return Run(f"{name}-seed{seed}", "finetune", data, seed, settings, start)


def pretrain(mode: str, data: Data, seed: int) -> Run:
    settings = {**(PRETRAIN_PHOTOS if data.kind == "photos" else {**PRETRAIN, "flip": False}), "mask_mode": mode}
    return Run(f"pretrain-{data.kind}-{mode}-seed{seed}", "pretrain", data, seed, settings)


def from_scratch(size: int, seed: int) -> Run:
    """Plain training on `size` labels of each class (0: on all); an arm of more than one table."""
    return _on_labels("scratch", size, seed)


def _on_labels(
    name: str, size: int, seed: int, settings: dict[str, Any] | None = None, start: Run | None = None
) -> Run:
    data = Data("labels", size, seed) if size else DIGITS
    return finetune(f"{name}-labels{size or 'all'}", data, seed, {**SHORT, **(settings or {})}, start)


def simmim(seeds: Iterable[int]) -> list[Arm]:
    starts: dict[str, tuple[str, Data]] = {
        "SimMIM, token": ("token", DIGITS),
        "SimMIM, sparse": ("sparse", DIGITS),
        "SimMIM, sparse, on photographs": ("sparse", Data("photos")),
    }

    def run(name: str, size: int, seed: int) -> Run:
        if name not in starts:
            return from_scratch(size, seed)
        mode, data = starts[name]
        return _on_labels(f"from-pretrain-{data.kind}-{mode}", size, seed, None, pretrain(mode, data, seed))

    return [
        Arm(share, name, tuple(run(name, size, seed) for seed in seeds))
        for share, size in SHARES.items()
        for name in ("from scratch", *starts)
        if size == 14 or not name.endswith("photographs")
    ]


def randaugment(seeds: Iterable[int]) -> list[Arm]:
    def run(name: str, size: int, seed: int) -> Run:
        if not AUGMENTATIONS[name]:
            return from_scratch(size, seed)
        return _on_labels(f"augmented-{name.replace(' + ', '-').lower()}", size, seed, AUGMENTATIONS[name])

    few, every = list(SHARES)[1:]
    tables = [(few, ON_AND_OFF[0]), (few, ON_AND_OFF[1]), (every, ON_AND_OFF[1])]
    return [
        Arm(f"{share}, {names[0]}", name, tuple(run(name, SHARES[share], seed) for seed in seeds))
        for share, names in tables
        for name in names
    ]


def long_tail(seeds: Iterable[int]) -> list[Arm]:
    def short(name: str) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in name)

    def train(name: str, settings: dict[str, Any], seed: int, start: Run | None = None) -> Run:
        data = Data("long_tail", IMBALANCE, seed)
        return finetune(f"long_tail-{short(name)}", data, seed, {**LONG_TAIL, **settings}, start)

    def correct(name: str, settings: dict[str, Any], seed: int) -> Run:
        plain = train("plain", {}, seed)
        return Run(f"long_tail-{short(name)}-seed{seed}", "evaluate", plain.data, seed, settings, plain)

    arms = {"plain cross-entropy": [train("plain", {}, seed) for seed in seeds]}
    arms |= {name: [train(name, settings, seed) for seed in seeds] for name, settings in LONG_TAIL_METHODS.items()}
    arms["cRT (10 epochs more)"] = [train("crt", CRT, seed, train("plain", {}, seed)) for seed in seeds]
    arms |= {name: [correct(name, settings, seed) for seed in seeds] for name, settings in AFTERWARDS.items()}
    return [Arm(f"imbalance {IMBALANCE}", name, tuple(runs)) for name, runs in arms.items()]


def robustness(seeds: Iterable[int]) -> list[Arm]:
    def trained(name: str, settings: dict[str, Any], seed: int) -> Run:
        """Plain training, then the method: every arm begins from the same model, which knows the classes."""
        return finetune(f"{name}-after-scratch", DIGITS, seed, {**AFTER_PLAIN, **settings}, from_scratch(0, seed))

    def attacked(epsilon: int, run: Run) -> Run:
        settings = {"attacks": ("fgsm", "pgd", "apgd"), "epsilon": float(epsilon), "steps": 20}
        return Run(f"attack{epsilon}-{run.name}", "attack", DIGITS, run.seed, settings, run)

    return [
        Arm(f"epsilon {epsilon}/255", name, tuple(attacked(epsilon, trained(*how, s)) for s in seeds))
        for epsilon in EPSILONS
        for name, how in DEFENCES.items()
    ]


SMALL_LR = 1e-6  # AdamW's steps are then too small to carry a rounding error on to the next loss


def kernels(seeds: Iterable[int]) -> list[Arm]:
    def run(task: str, arm: str, seed: int) -> Run:
        settings: dict[str, Any] = {"task": task, "double": arm == "float64", "epochs": 1}
        settings |= {"lr": SMALL_LR} if arm == "float32, small steps" else {}
        settings |= {"pictures": 0, "mask_mode": "token"} if task == "pretrain" else {}
        name = f"kernels-{task}-{arm.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        return Run(name, "kernels", Data("labels", 14, seed), seed, settings)

    return [
        Arm(task, arm, tuple(run(task, arm, seed) for seed in seeds))
        for task in ("finetune", "pretrain")
        for arm in ("float32, small steps", "float32", "float64")
    ]


EXPERIMENTS: dict[str, Callable[[Iterable[int]], list[Arm]]] = {
    "long_tail": long_tail,
    "simmim": simmim,
    "robustness": robustness,
    "randaugment": randaugment,
    "kernels": kernels,
}
