"""What the activations of a run say: each analysis takes a run, without the model unless it says otherwise, and gives a
typed result whose arrays are NumPy's.
"""
