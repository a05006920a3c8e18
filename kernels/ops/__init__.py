"""Everything a network needs besides convolutions.

Each file or folder is one operator or a family: frozen specs that say what, and a function per
spec that returns the Program for where its input and output lie. Those of images take a
`Placement` (`build`), those of tensors of any rank a `Strided`, which every placement is too.
"""
