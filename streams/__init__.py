"""Passes over calibration documents: block by block, activations, gradients, Hessians.  Imports ``core`` only."""
