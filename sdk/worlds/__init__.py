"""Looking at tool worlds: their graphs, their transcripts, and a seat in them."""
