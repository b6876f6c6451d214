"""Reports of a run's measurements: verdict, pages, comparisons."""
