"""What docs/results.md says around its tables; the figures and the verdicts are computed."""

HEAD = """# What the training methods gain

Written by `python -m benchmarks.evidence.report` from benchmarks/results/evidence_*.json, which
`python -m benchmarks.evidence` measures (`make evidence` does both). Speed has its own figures in the README.

- **Data**: scikit-learn's 1,797 handwritten digits (8 x 8 pixels, enlarged to 32), of which the same 359 are held out
  of everything; squares of 64 pixels of six photographs that scikit-learn and scikit-image ship.
- **Model**: `replknet_nano` (1.4 M parameters), the preset `digits` with 12 epochs (264 steps), unless a table says
  otherwise. Epochs and batches were chosen on single seeds of plain training, for the long tail of balanced softmax
  too; no arm was tuned beyond that, and all arms of a table share what is not in their name. The settings of every run
  are in the results files.
- **Seeds**: {seeds}. A seed decides the initial weights, the order, the augmentation, and which images a subset holds.
  Cells are mean ± standard deviation (least to largest), differences are taken seed by seed. "gains" and "costs":
  the 95 % interval of the mean difference (Student's t) leaves out 0; of many arms one in twenty does by chance alone.
- **Seconds** of one run, training and its evaluations, the seeds' median: wall time / processor time of its one thread;
  "+": what it starts from. Two runs at a time on two cores; other work shared these and at times stopped the runs, so
  the wall times are upper bounds. All runs of this page, two at a time: {seconds} minutes by the clock,
  {processor_seconds} of computing.
- {conditions}

Small data and short runs: these figures say what the methods do here, not what they do on ImageNet.
"""

WORDS = {
    "simmim": """
## Masked pre-training, fine-tuned with few labels

20 epochs of SimMIM on the 1,438 training digits without their labels, or 60 on squares of photographs, then
fine-tuning of all weights. The subsets hold the same number of images of each class; an epoch lists them 70 or 5
times, 700 in all, for 12 epochs.

![Held-out accuracy by share of the labels](img/evidence_simmim.png)
""",
    "long_tail": """
## Long-tailed data

Training digits cut to an exponential tail of imbalance 50, drawn anew for each seed: of the classes 0 to 9 one has
many images (139), four a medium number (89, 58, 37, 24), five few (15, 10, 6, 4, 2). 20 epochs of 12 steps of 32
images, no label smoothing. Held-out accuracy, whose data is balanced: overall, mean over classes, and over the groups.
PaCo and GPaCo have a queue of 384 and 32 dimensions, PaCo a momentum of 0.99 (their own sizes are for runs of 100,000
steps), and see two views of every image in a step. cRT trains the head for 10 epochs more, on features that stay.
tau-norm evens out the length of the head's rows; after so short a training it does not grow with the size of the class.

![Accuracy by method](img/evidence_long_tail.png)
""",
    "randaugment": """
## RandAugment

`n2-m9` (two of the paper's 14 operations at magnitude 9 of 30), beside nothing and beside the preset's own affine
variation. It is made for trainings that are longer than these 12 epochs.
""",
    "robustness": """
## Attacks

Each arm goes on for 6 epochs from plain training of 12, which is then the same in all. FGSM, PGD-20 (steps of
2.5 epsilon / 20) and APGD-CE (100 steps), each from one start, in 255ths of the range of a pixel; one grey level of the
digits is 16. An image counts if it is right clean and under the attack. AdvProp is meant for clean accuracy, not as a
defence.
""",
    "kernels": """
## The operators against their references

The same short training (the preset's AdamW from random weights, 14 images a class) three times: with the large-kernel
blocks' depthwise convolutions and the masked-patch loss by the operators, by their references, and with PyTorch's
convolution. The table has differences of the loss, which is about 2.4 (fine-tuning) and 0.75 (pre-training), from that
with the references; of all seeds the largest, and the fewest steps. **Small steps** (learning rate 1e-6) are the check:
what is computed differs by float32's rounding, the weights hardly move, and the curves must stay together to the end.
The preset's own rate of 4e-3 from random weights multiplies rounding: in float32 the curves part after a few steps,
whoever computes, and float32 moves the references' own curve about as far from their float64 one. In float64 the
operators' CPU implementation is PyTorch's own convolution (the AVX-512 kernel has no float64), so its row shows the
loss's operator and the gradients' wiring alone.
""",
}
