"""What became of each request, on its way to the learner: in one append on the serving thread, the rest in another."""
