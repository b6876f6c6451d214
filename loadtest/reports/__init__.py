"""What is made of a run's measurements: a verdict, pages, comparisons."""
