"""What jconv.lax, accelerate and automatic share: one loop over what a function does, and the tables it follows.

walk.py        the loop: it knows jit, scan, while, cond, custom rules, and no convolution
convolutions.py, pools.py    a lax equation read as one of jconv's products
plain.py       the way back: a product of jconv as plain lax
table.py       from primitive to replacement, in both directions
report.py      what was replaced, where, and what was left and why
"""
