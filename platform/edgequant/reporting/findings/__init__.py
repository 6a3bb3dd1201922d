"""What a comparison comes to: paired differences, what QAT won back, domains, commands behind rows, plain words."""
