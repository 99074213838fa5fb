"""What docs/results.md says around its tables; the figures and the verdicts are computed."""

HEAD = """# What the training methods gain

What pre-training, long-tail methods, RandAugment and adversarial training gain or cost on small real data. `python -m
benchmarks.evidence` measures benchmarks/results/evidence_*.json, from which `python -m benchmarks.evidence.report`
writes this page (`make evidence` does both). The README has the figures of speed.

- **Data**: scikit-learn's 1,797 handwritten digits (8 x 8 pixels, enlarged to 32), of which the same 359 are held out
  of everything; squares of 64 pixels of six photographs that scikit-learn and scikit-image ship.
- **Model**: `replknet_nano` (1.4 M parameters), the preset `digits` with 12 epochs (264 steps), unless a table says
  otherwise. Epochs and batches were chosen on single seeds of plain training, for the long tail also of balanced
  softmax. No arm was tuned beyond that, and the arms of a table differ only in what their name says. The settings of
  every run are in the results files.
- **Seeds**: {seeds}. A seed decides the initial weights, the order, the augmentation, and which images a subset holds.
  Cells are mean ± standard deviation (least to largest); differences are between runs of the same seed. "gains" and
  "costs" mean that the 95 % interval of the mean difference (Student's t) excludes 0; one arm in twenty does so by
  chance.
- **Seconds** are of one run, training and its evaluations, the seeds' median: wall time / processor time of its one
  thread; "+" adds the run that it starts from. Two runs at a time shared two cores with other work, which at times
  stopped them, so the wall times are upper bounds. All runs of this page took {seconds} minutes by the clock,
  {processor_seconds} of computing.
- {conditions}

Small data and short runs: these figures say what the methods do here, not what they do on ImageNet.
"""

WORDS = {
    "simmim": """
## Masked pre-training, fine-tuned with few labels

20 epochs of SimMIM on the 1,438 training digits without their labels, or 60 on squares of photographs, then
fine-tuning of all weights for 12 epochs. The subsets hold the same number of images of each class; an epoch repeats
them 70 or 5 times, 700 in all.

![Held-out accuracy by share of the labels](img/evidence_simmim.png)
""",
    "long_tail": """
## Long-tailed data

The training digits are cut to an exponential tail of imbalance 50, drawn anew for each seed: of the classes 0 to 9 one
has many images (139), four a medium number (89, 58, 37, 24), five few (15, 10, 6, 4, 2). Each run is 20 epochs of 12
steps of 32 images, without label smoothing. The held-out data is balanced; the table has its accuracy overall, as the
mean over classes ("balanced"), and over the three groups. PaCo and GPaCo have a queue of 384 and 32 dimensions, PaCo a
momentum of 0.99 (the authors' sizes are for runs of 100,000 steps), and see two views of every image in a step. cRT
trains the head for 10 epochs more, on frozen features. tau-norm equalises the length of the head's rows; after so short
a training that length does not grow with the size of the class.

![Accuracy by method](img/evidence_long_tail.png)
""",
    "randaugment": """
## RandAugment

`n2-m9` (two of the paper's 14 operations at magnitude 9 of 30), compared with no augmentation and added to the preset's
own affine variation. It is made for trainings that are longer than these 12 epochs.
""",
    "robustness": """
## Attacks

Each arm trains for 6 epochs, starting from the same plain training of 12. The attacks are FGSM, PGD-20 (steps of
2.5 epsilon / 20) and APGD-CE (100 steps), each from one start. Epsilon is in 255ths of the range of a pixel; one grey
level of the digits is 16. An image counts as right if it is right both clean and under the attack. AdvProp is meant for
clean accuracy, not as a defence.
""",
    "kernels": """
## The operators against their references

The same short training (the preset's AdamW from random weights, 14 images a class) is run three times: with the
operators for the large-kernel blocks' depthwise convolutions and the masked-patch loss, with their references, and with
PyTorch's convolution. The table has differences of the loss, which is about 2.4 (fine-tuning) and 0.75 (pre-training),
from the loss with the references: the largest of all seeds, and the fewest steps that agree. **Small steps** (learning
rate 1e-6) are the check: the results differ by float32's rounding, the weights hardly move, and the curves must stay
together to the end. The preset's own rate of 4e-3 from random weights multiplies rounding errors: in float32 the curves
diverge after a few steps whichever implementation computes, and the references' own float32 and float64 curves differ
about as much. In float64 the operators' CPU implementation is PyTorch's own convolution (the AVX-512 kernel has no
float64), so that row tests only the loss's operator and the wiring of the gradients.
""",
}
