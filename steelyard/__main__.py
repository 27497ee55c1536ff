from steelyard.entry import main

main()
