"""Prediction with trained models: predictor, ensembles and their results. Import the modules by name."""
