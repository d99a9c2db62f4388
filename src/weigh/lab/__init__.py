"""The lab: techniques at work in real trainings of a small model. Needs the extra `weigh[torch]`.

bench         the settings of a run: the model, its sizes, the text, how long
techniques    the table of techniques, a row each
text          what is trained on, and what the loss is measured on
loops         the same work on ghost tensors: what is predicted
run           one technique after the other, each in a process of PyTorch, resumed where it was killed
report, picture, page    text and JSON, SVG, HTML
real          what runs in the process of PyTorch; nothing else here loads it
"""
