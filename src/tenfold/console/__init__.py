"""The console: a web page over the files that the other rooms write."""
