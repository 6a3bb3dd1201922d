"""What a search comes to: its front on test data, the winner's recipe."""
