"""Models from elsewhere: pickles, code, and files that are not what they say."""
