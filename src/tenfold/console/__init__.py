"""The console: one page that shows what the other rooms wrote."""
