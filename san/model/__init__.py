"""The Side Adapter Network, in plain torch: no config system, no Detectron2."""
