"""Complete data sets from their sources, in the layout trainA, trainB, testA, testB."""
