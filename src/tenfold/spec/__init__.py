"""What all other packages share: model shapes, layouts, accelerators, laws, forecasts, units, files. Never imports torch."""
